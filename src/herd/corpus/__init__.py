"""Documents -> tokenizer and token shards -> mixture -> packed batches."""
