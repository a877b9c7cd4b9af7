"""Replace every answer of the data by the target's own.

`regenerate` is the command: it asks the `questions` of the data (`ask_all`) of a server (`openai_server`) and notes the
answers in a `journal`, which a killed run continues.
"""
