"""The arithmetic: ``cpu/``, ``cuda/`` are compiled into ``genimg._C``; ``triton/`` is imported."""

if __name__ != "genimg.kernels":
    raise ImportError(
        f"{__name__!r} is genimg's folder of kernel sources, found because the checkout is on "
        "sys.path; import genimg.kernels instead"
    )
