"""Files -> packed rows: `documents` reads and tokenises, `chat` finds what the target said, `packing` fills rows."""
