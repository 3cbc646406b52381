namespace SOFTMAX_TORCH_ISA {
void anchor() {}
}  // namespace SOFTMAX_TORCH_ISA
