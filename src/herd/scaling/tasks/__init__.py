"""From loss to benchmark accuracy: links between the two, and the task law that carries both through."""
