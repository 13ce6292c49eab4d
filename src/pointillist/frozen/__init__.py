"""Networks that are consulted and never trained: what others learnt, as distance or teacher."""
