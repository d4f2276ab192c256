"""How did the original make a StyleGAN obey? Its fine-tuning variants, as methods of one interface."""
