"""Both towers of a trained model as ONNX: `towers` makes them traceable, `exporting` writes and checks them.

Not needed for anything else here: `pip install -e ".[onnx]"`. Scores of pairs (IMFA's fused attention) are not exported,
only vectors.
"""
