"""Small models of many architectures, with weights drawn at random, and a tokenizer of whole words."""

from pathlib import Path

WORDS = [
    "<pad>", "<unk>", "<s>", "</s>", *"the a of red blue green cat dog fish sees eats likes big small not .".split(),
]  # fmt: skip
SENTENCES = [
    "the red cat sees a dog .", "a fish .", "the big green dog not likes the small blue fish of the cat .", "dog",
]  # fmt: skip

_SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
_POSITIONS = {"max_position_embeddings": 40}
KINDS = ("bert", "roberta", "distilbert", "llama", "gpt2", "gpt_neox", "opt", "qwen2", "t5", "bart")


def make(kind: str, folder: Path, *, head: bool = False) -> Path:
    """Write a model of that kind to the folder."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    n, small = len(WORDS), {**_SMALL, "vocab_size": len(WORDS)}
    configs = {
        "bert": lambda: t.BertConfig(**small, **_POSITIONS),
        "roberta": lambda: t.RobertaConfig(**small, **_POSITIONS, pad_token_id=0, bos_token_id=2, eos_token_id=3),
        "distilbert": lambda: t.DistilBertConfig(vocab_size=n, dim=16, n_layers=3, n_heads=4, hidden_dim=24,
                                                 **_POSITIONS),
        "llama": lambda: t.LlamaConfig(**small, **_POSITIONS, num_key_value_heads=2, bos_token_id=2, eos_token_id=3),
        "gpt2": lambda: t.GPT2Config(vocab_size=n, n_embd=16, n_layer=3, n_head=4, n_positions=40, bos_token_id=2,
                                     eos_token_id=3),
        "gpt_neox": lambda: t.GPTNeoXConfig(**small, **_POSITIONS, bos_token_id=2, eos_token_id=3),
        "opt": lambda: t.OPTConfig(vocab_size=n, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
                                   ffn_dim=24, word_embed_proj_dim=16, pad_token_id=0, bos_token_id=2, eos_token_id=3,
                                   **_POSITIONS),
        "qwen2": lambda: t.Qwen2Config(**small, **_POSITIONS, num_key_value_heads=2, bos_token_id=2, eos_token_id=3),
        "gemma2": lambda: t.Gemma2Config(**small, **_POSITIONS, num_key_value_heads=2, head_dim=4, bos_token_id=2,
                                         eos_token_id=3, pad_token_id=0, final_logit_softcapping=5.0),
        "granite": lambda: t.GraniteConfig(**small, **_POSITIONS, num_key_value_heads=2, bos_token_id=2, eos_token_id=3,
                                           residual_multiplier=0.5, logits_scaling=3.0),
        "esm": lambda: t.EsmConfig(**small, **_POSITIONS, pad_token_id=0, mask_token_id=1, emb_layer_norm_before=False,
                                   token_dropout=False),
        "t5": lambda: t.T5Config(vocab_size=n, d_model=16, d_kv=4, d_ff=24, num_layers=3, num_heads=4, pad_token_id=0,
                                 decoder_start_token_id=0, eos_token_id=3),
        "bart": lambda: t.BartConfig(vocab_size=n, d_model=16, encoder_layers=3, decoder_layers=3,
                                     encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24,
                                     decoder_ffn_dim=24, pad_token_id=0, bos_token_id=2, eos_token_id=3,
                                     decoder_start_token_id=3, **_POSITIONS),
    }  # fmt: skip
    config = configs[kind]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if head:
            masked = kind in ("bert", "roberta", "distilbert", "esm")
            network = (t.AutoModelForMaskedLM if masked else t.AutoModelForCausalLM).from_config(config)
        else:
            network = t.AutoModel.from_config(config)
        for parameter in network.parameters():  # the usual ones are too small to tell layers apart
            torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 2), ("</s>", 3)])
    t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=36,
    ).save_pretrained(folder)  # fmt: skip
    return folder
