"""Text in, packed token rows out; or the rows of a synthetic task."""

from longwave.data.corpora import Contents, Corpus, read_corpus
from longwave.data.mixing import MixedRows
from longwave.data.packing import PackedRows, TokenStream, encode, tokenize
from longwave.data.preparation import Data, DataSection, WeightedSource, prepare_data
from longwave.data.pretrained import END_OF_TEXT
from longwave.data.storage import store
from longwave.data.streaming import StreamedRows
from longwave.data.synthetic import ScoredRows, TaskRows, TaskSection, chance, solve
from longwave.data.tokenizers import build_tokenizer, number_tokenizer, vocabulary_size

__all__ = [
    "END_OF_TEXT",
    "Contents",
    "Corpus",
    "Data",
    "DataSection",
    "MixedRows",
    "PackedRows",
    "ScoredRows",
    "StreamedRows",
    "TaskRows",
    "TaskSection",
    "TokenStream",
    "WeightedSource",
    "build_tokenizer",
    "chance",
    "encode",
    "number_tokenizer",
    "prepare_data",
    "read_corpus",
    "solve",
    "store",
    "tokenize",
    "vocabulary_size",
]
