"""Text in, packed token rows out."""

from longwave.data.corpora import Corpus, read_corpus
from longwave.data.packing import PackedRows, TokenStream, tokenize
from longwave.data.tokenizers import END_OF_TEXT, build_tokenizer

__all__ = ["END_OF_TEXT", "Corpus", "PackedRows", "TokenStream", "build_tokenizer", "read_corpus", "tokenize"]
