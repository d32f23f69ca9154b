"""Parts of `finetune`: tables, labels, tasks, rows of tokens, training, the output folder."""
