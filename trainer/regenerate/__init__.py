"""Replace every answer of the data by the target's own.

`regenerate` is the command: it asks a server (`openai_server`) the `questions` of the data (`ask_all`), reads what
comes back (`answer`) and notes it in a `journal`, which a killed run continues.
"""
