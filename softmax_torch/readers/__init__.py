"""Readers of files: delimited text, arrays, tensors, images and IDX.

    file  ->  reader  ->  pyarrow tables, NumPy arrays or torch tensors, not yet preprocessed

A reader needs torch and the library of its format (pyarrow, Pillow) alone. It knows neither fitted
state (``softmax_torch.preprocessing``) nor data modules (``softmax_torch.data``). Its errors name
the file and, where there is one, the line or row.
"""
