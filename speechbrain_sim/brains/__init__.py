"""SpeechBrain training loops."""
