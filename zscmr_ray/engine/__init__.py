"""The training engine: step, collectives, DeepSpeed, checkpoints. Torch and torch.distributed, no Ray.

DeepSpeed is imported in engine/deepspeed.py only; it and Ray could be taken out by touching engine/ and stages/ alone.
"""
