"""The fifteen corruptions of Hendrycks and Dietterich (arXiv 1903.12261), each at five severities.

They are written from the paper, because no package that is kept has them: `imagecorruptions`, the authors' code as a
package, was last released in 2020 and uses names that NumPy 2, scikit-image 0.19 and SciPy 2 no longer have. The
strengths are those of the published ImageNet-C, and the pixels are not: random draws, the frost, the paths of motion
blur and the shuffling of glass blur are this module's own. Numbers are therefore comparable with each other, and not
with those that were measured on the published images.

Lengths, such as the radius of a blur, are those for a shorter side of 224 pixels and grow with it, so that an image of
another size looks equally corrupted.
"""
