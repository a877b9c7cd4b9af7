"""Read a head (`head`) and a target model (`target`) on disk: their files, configs and tensors' headers.

Nothing is loaded before it is asked for, and then one tensor at a time; `tools.convert` and `tools.inspect` share this.
"""
