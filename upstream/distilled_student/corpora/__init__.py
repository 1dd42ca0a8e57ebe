"""Layouts of corpora on disk: keyword clips, speakers and their trial lists, the embedded corpus."""
