import pickle
import random

from transformers import PreTrainedTokenizerBase

from raytune.data.decoder import Decoder, decoder_of


def test_it_decodes_as_the_tokenizer_does(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    decoder = pickle.loads(pickle.dumps(decoder_of(smollm2_tokenizer)))
    assert isinstance(decoder, Decoder)
    draw = random.Random(0)
    for _ in range(50):
        ids = [draw.randrange(len(smollm2_tokenizer)) for _ in range(30)] + [2, 1, 0]
        for skip in (True, False):
            assert decoder.decode(ids, skip_special_tokens=skip) == smollm2_tokenizer.decode(
                ids, skip_special_tokens=skip
            )
