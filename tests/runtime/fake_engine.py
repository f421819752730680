"""A stand-in for `ai_edge_litert` whose model files are one word: what to do. Found by workers through PYTHONPATH.

A model is a classifier of 3 classes, [1, 4, 4, 3] uint8 in; the brightest channel wins. The word says what goes wrong.
"""

from __future__ import annotations

from pathlib import Path

SOURCE = """
import os, signal, sys, time
import numpy as np

def die(how):
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(10)  # another thread may be the one that gets it

class Interpreter:
    def __init__(self, model_path, num_threads):
        self.path, self.word = model_path, open(model_path).read().split()
        self.do("load")
        self.values = np.zeros((1, 4, 4, 3), np.uint8)

    def do(self, when):
        if self.word[0] != when:
            return
        what = self.word[1]
        open(self.path + ".seen", "w").close()
        if what == "hang": time.sleep(1000)
        if what == "spin":
            ends = time.thread_time() + float((self.word + ["inf"])[2])
            while time.thread_time() < ends: pass
        if what == "sleep": time.sleep(float(self.word[2]))
        if what == "exit": sys.stderr.write("last words of the engine\\n"); sys.stderr.flush(); os._exit(3)
        if what == "signal": die(self.word[2])
        if what == "memory": self.block = np.ones(int(self.word[2]) << 20, np.uint8)
        if what == "refuse": raise ValueError("not a flatbuffer")
        if what == "unforeseen": raise KeyboardInterrupt("nobody foresaw this")
        if what == "environment": raise ValueError(" ".join(sorted(os.environ)))
        if what == "shout": os.write(1, b"x" * (1 << 20)); os.write(2, b"y" * (1 << 20))
        if what == "garbage": os.write(int(sys.argv[1]), b"\\xff" * 4096); time.sleep(1000)

    def allocate_tensors(self): pass
    def detail(self, name, shape, dtype):
        none = {"scales": np.array([]), "zero_points": np.array([])}
        return {"name": name, "index": 0, "shape": shape, "shape_signature": shape, "dtype": dtype,
                "quantization_parameters": none}
    def get_input_details(self): return [self.detail("image", [1, 4, 4, 3], np.uint8)]
    def get_output_details(self): return [self.detail("probs", [1, 3], np.float32)]
    def set_tensor(self, index, values): self.values = values
    def invoke(self):
        if self.values.any():  # not on the black picture of the warm-up
            self.do("run")
            if not os.path.exists(self.path + ".seen"):
                self.do("once")
    def get_tensor(self, index):
        row = np.full((1, 3), 0.05, np.float32)
        row[0, int(self.values.reshape(-1, 3).sum(axis=0).argmax())] = 0.9
        return row
"""


def write_engine(folder: Path, *, source: str = SOURCE) -> Path:
    """Writes the package into `folder`; returns what to set PYTHONPATH to."""
    package = folder / "engine" / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text(source)
    return package.parent
