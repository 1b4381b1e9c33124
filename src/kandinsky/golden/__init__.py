"""Golden cases as conformance runners read them: recorded inputs, outputs and settings."""
