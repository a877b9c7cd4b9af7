"""Turn chats into the text that SGLang's OpenAI endpoint would serve, and find in it what the target says.

`records` finds the chat in a record, `messages` and `tools` bring it into the endpoint's form, `template` renders it,
`reasoning` finds where a template shows reasoning, `turns` divides a conversation into prompts and answers, `tokens`
makes token ids of them.
"""
