"""What happens after the last step: the whole model from any layout, pictures of its evaluation, optimisation, export."""
