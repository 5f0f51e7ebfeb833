"""onnxprune as a part of other tools; each module imports the tool that it is for.

olive    a pass of Microsoft's Olive
"""
