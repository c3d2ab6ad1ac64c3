"""Encoders inside SpeechBrain, S3PRL and ONNX."""
