"""The live side of ``headwater.watch``: hooks during training, statistics left on the device, one raw step per record."""
