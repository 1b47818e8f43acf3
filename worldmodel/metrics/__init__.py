"""Metrics of videos and predictions: FVD, inception score, PSNR, SSIM, calibration, and their confidence intervals."""
