"""One transformer family built from traits. A trait is one small file in one of the folders below."""
