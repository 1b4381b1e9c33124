"""Official call signatures, translated. Nothing in the library imports these modules."""
