"""Is it good enough? An independent judge and one scorer per model, on data held out from every training.

Each scorer module has `score(model_folder, inputs, config) -> metrics`; the gate compares its figures.
"""
