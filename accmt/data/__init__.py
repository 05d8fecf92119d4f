"""Data: loaders, the batches of an epoch from any position, random draws, and the transfer of batches to the device."""
