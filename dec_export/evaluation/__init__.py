"""The evaluation of bundles on a user's own labelled images: the second proof, on thousands of images.

`samples` and `layouts` find the images of a data set. `conditions` change images. `models` are what is evaluated.
`scores` turns logits into the numbers of one image. `worker` computes one chunk of images, `journal` keeps finished
chunks, and `run` computes them all in this process. `results` summarises, `statistics` has the intervals of paired
differences, and `gate` compares them with the user's limits.
"""
