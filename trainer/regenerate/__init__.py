"""Answers written by the target itself: what is asked, the server that answers, the journal of what is done."""
