"""What crosses a boundary: vocabulary, messages and request schemas."""
