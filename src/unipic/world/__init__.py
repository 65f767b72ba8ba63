"""A small world of coloured shapes, with an exact verifier: what the embedded model learns, and what judges it.

numpy and PIL only. `scene` says what there is, `render` draws it, `verify` finds it again from pixels alone.
"""
