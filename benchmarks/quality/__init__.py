"""How good prefixes are: the study behind the default recipe, beside PEFT's prefixes, LoRA and full fine-tuning."""
