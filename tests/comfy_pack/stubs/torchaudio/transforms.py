"""See the package."""


class MelScale: ...


class MelSpectrogram: ...


class Resample: ...
