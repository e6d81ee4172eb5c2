"""How the shipped digit models were trained. `scripts/train_digits.py` is the command.

`loop` is what every training shares. `supervised_tasks`, `supervised` and `supervised_results` train on labels.
`views`, `losses`, `self_supervised_plan`, `learner`, `probe`, `map_errors`, `self_supervised`, `cost` and
`self_supervised_results` train without labels, with Soft Equivariance Regularization (SER).
"""
