"""The objective: noise levels, the denoising loss and how it is weighted (arXiv 2312.02696v2, Eqs. 14, 15 and 21)."""
