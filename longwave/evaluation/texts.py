"""Prompts and words of the evaluation suite. They may be replaced; a result says which were used."""

from __future__ import annotations

#: The fixed list of the published passkey test.
SEED_WORDS = (
    *("apple", "tiger", "robot", "ocean", "piano", "eagle", "storm", "river", "crown", "flame"),
    *("ghost", "clock", "brick", "frost", "sword", "light", "brush", "stone", "shelf", "grape"),
)
#: Ten fruits, as in the published suite: five of them are several tokens of its tokenizer.
SUITE_WORDS = ("apple", "orange", "lemon", "cherry", "banana", "grape", "mango", "peach", "kiwi", "melon")
#: Answers where words are several tokens each: first what the filler does not hold.
CHARACTERS = tuple("0123456789zqxjkvbpyg")

PASSKEY_CUE = "the secret word is"
PASSKEY_STOP = " ."
PASSKEY_FILLER = "the weather was mild and the air was still . "

#: Whose next token is to be guessed: nearly certain first, open last.
NEXT_TOKEN_PROMPTS = (
    "Monday, Tuesday, Wednesday, Thursday,",
    "One, two, three, four, five, six,",
    "The sun rises in the east and sets in the",
    "The opposite of hot is",
    "A week has seven days and a year has twelve",
    "The teacher wrote the answer on the",
    "She opened the door and saw",
    "The most important thing to remember is",
    "Yesterday I met a man who",
    "The",
)
#: Texts to continue at length.
OPENINGS = (
    "The old bridge had been closed since the flood, and",
    "To make good bread, you first need",
    "When the train finally arrived at the station,",
    "The experiment showed that plants grow faster when",
    "My grandmother used to say that",
    "In the early years of the century, the city was",
    "The function takes two arguments and returns",
    "The captain looked at the map and said,",
)

#: Each shows two copies and asks for a third.
COPY_TEMPLATES = (
    "word: river\ncopy: river\n\nword: candle\ncopy: candle\n\nword: {word}\ncopy:",
    "Say it again. stone -> stone, cloud -> cloud, {word} ->",
    'She wrote "garden", he wrote "garden". She wrote "mirror", he wrote "mirror". She wrote "{word}", he wrote "',
)
COPY_WORDS = ("lantern", "meadow", "copper", "violin", "harbor")
#: Prompts and their answers: a text as it is, in other letters, by its place, by its key, in another order.
COPY_PROMPTS = (
    ("QWRT -> QWRT\nLMZX -> LMZX\nHBVN ->", "HBVN"),
    ("in 391 out 391\nin 572 out 572\nin 847 out", "847"),
    ("cat -> CAT\ndog -> DOG\nsun ->", "SUN"),
    ("TREE -> tree\nFISH -> fish\nMOON ->", "moon"),
    ("north south east: first is north\nbread milk salt: first is", "bread"),
    ("north south east: last is east\nbread milk salt: last is", "salt"),
    ("1 red 2 blue 3 green, item 2 is blue\n1 iron 2 gold 3 tin, item 3 is", "tin"),
    ("a=4 b=9 c=2, b is 9\na=7 b=3 c=5, c is", "5"),
    ("salt pepper -> pepper salt\nday night -> night day\nleft right ->", "right"),
    ("x y x y x y x y x", "y"),
)
