"""A byte-level BPE tokenizer built in code from a list of sentences: nothing is downloaded, any text can be encoded."""

from collections.abc import Iterable

PAD, EOS = "<pad>", "<eos>"


def byte_level_tokenizer(sentences: Iterable[str], vocab_size: int = 512):
    """A `PreTrainedTokenizerFast`: words of `sentences` are tokens as far as `vocab_size` goes, the rest is bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=EOS)
