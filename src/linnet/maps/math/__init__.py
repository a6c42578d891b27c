"""The mathematics that several maps share: pure functions of tensors with any leading axes."""
