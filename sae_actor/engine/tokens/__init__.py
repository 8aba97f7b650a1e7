"""Text and tokens.

tokenizer         the tokenizer of a model, and what is known of its tokens
prompts           text, chats, ids → token ids; `info`: token ids → text, and what is known of the tokenizer
chat_templates    chats as a model's template writes them
chat_spans        where a chat's messages are among the tokens, found by `marks`
control_tokens    text that spells a control token stays text
answers           the answer during generation, in runs: `reasoning` separated, cut at `stop_strings`
detokenizer       tokens → text without half characters
token_text        text and bytes of single tokens
"""
