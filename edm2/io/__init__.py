"""Files of networks and images.

model.py       `edm2.load` and `edm2.save`: a file, a pipeline's folder or a name, and the network in it
snapshots.py   snapshots of every kind: ours (.safetensors), published pickles, pipelines of diffusers
published/     network pickles of the published program, read without executing anything
text_encoder.py  texts to tokens, by transformers
onnx.py        networks as ONNX files, for programs without PyTorch
hub.py         repositories of the Hugging Face hub, and files by their URL
images.py      PNG files and grids of images
npz.py         NPZ files of many images
"""
