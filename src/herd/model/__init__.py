"""The Llama 3 Transformer: attention, RoPE, heads, KV cache, parameter and FLOP counts, conversion. Pure torch."""
