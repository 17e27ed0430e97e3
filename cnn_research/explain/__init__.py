"""See and explain a network: figures from plain arrays, and views into any Flax Linen module by the path of a layer.

Nothing here knows of training, configs or workdirs. Figures are `matplotlib.figure.Figure` or plotly's; no function
shows or saves one.
"""
