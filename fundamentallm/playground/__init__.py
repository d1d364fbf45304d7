"""The playground: a Gradio page over the engine. It holds no training state; run directories do."""
