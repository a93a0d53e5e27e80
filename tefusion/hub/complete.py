"""A model that comes with all of its weights, or not at all."""

from typing import Any

from transformers import PreTrainedModel

from tefusion.choices import listed


class Complete(PreTrainedModel):
    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but weights that are missing, unexpected or of another shape raise one ValueError that
        names them."""
        kwargs |= {"use_safetensors": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        problems = [f"{name} is missing" for name in sorted(info["missing_keys"])]
        problems += [f"{name} is unexpected" for name in sorted(info["unexpected_keys"])]
        problems += [f"{name} is {tuple(got)} instead of {tuple(want)}" for name, got, want in info["mismatched_keys"]]
        if problems:
            raise ValueError(f"the weights do not fit their configuration: {listed(problems)}")
        return (model, info) if output_loading_info else model
