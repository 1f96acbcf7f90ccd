"""Let torchvision be imported beside a CPU build of torch.

torchvision's compiled library is published for CUDA only on some platforms. Without it torchvision still
works for all that ComfyUI takes from it, but its import wants to describe two operators which that library
would have declared. Here they are declared first. The set-up of the tests copies this file into its own
environment when it is needed there; it is not part of the node pack.
"""
import sys


class DeclareOperators:
    """A finder that finds nothing: it is asked for torchvision before anyone imports it, and acts once."""

    def find_spec(self, name, path=None, target=None):
        """Declare the operators when `name` is torchvision; always leaves the finding to the others."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


FINDER = DeclareOperators()     # kept: the declarations live as long as it does
sys.meta_path.insert(0, FINDER)
