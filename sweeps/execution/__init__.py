"""Who trains what where: Ray, workers, packs, ranks."""
