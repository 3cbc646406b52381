"""The hand-written autograd rules and the kernels behind them."""
