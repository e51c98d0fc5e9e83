"""What each rank is doing, on record where it outlives the rank, and who is to blame when ranks wait in vain."""
